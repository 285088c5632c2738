"""An asset's way: optimize, extract, evaluate, publish, and measuring it again."""
