"""The three training stages as scripts for `accelerate launch`, with their YAML configurations."""
