"""The ground floor: sources of rows, shards, staging, provenance, vectors, pictures. Every step stands on it."""
