"""Statistics of columns: what is known of their values, and how it is computed from blocks of rows."""
