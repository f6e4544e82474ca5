"""The experiments' shared parts."""
