"""Critics and value estimates shared by every method that has one."""
