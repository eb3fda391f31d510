"""The published datasets: where their rows come from, the `datasets` builder, and the dataset card.

Reading order: `released_json` (the papers' files), `embedding_lookup` (vectors by id), `sources` (rows of any origin),
`unicorn` (the builder), `dataset_card`.
"""
