"""The numbers of every run: one YAML file a verb, one folder a group. Methods keep theirs in their own `Config`."""
