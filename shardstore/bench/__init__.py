"""A store measured on the machine that it is on: how fast it reads, what holds it back, and what to set."""
