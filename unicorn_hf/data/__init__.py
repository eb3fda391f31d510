"""The ground floor of every step: sources of rows, shards, staging, provenance, vectors and images."""
