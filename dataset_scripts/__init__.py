"""The published datasets: the sources of their rows, the `datasets` builder, and the dataset card.

Reading order: `released_json` (the papers' files), `embedding_lookup` (vectors by id), `sources` (rows from any
source), `unicorn` (the builder), `dataset_card`, `publishing`.
"""
