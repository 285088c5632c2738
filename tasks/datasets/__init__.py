"""Curation: selecting assets, exporting them as a dataset, its card, near duplicates."""
