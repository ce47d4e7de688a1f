"""How is a topology laid out for a kernel? One file per layout; plans are cached with the topology they were built from."""
