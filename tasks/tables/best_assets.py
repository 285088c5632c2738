"""The view `best_assets`: the outcome of each asset that counts, with people's ratings. SQL."""

# A later failure must not hide an earlier success. The last two only break ties.
BEST_FIRST = "(status = 'ok') DESC, try_cast(attempt[2:] AS INT) DESC, ended_at DESC, run_id DESC"
RATINGS_SQL = """
SELECT asset_id, avg(stars) AS rating, count(stars) AS rating_count,
       max(stars) - min(stars) AS rating_spread,
       list_sort(list_distinct(flatten(list(words)))) AS labels
FROM (SELECT asset_id, CASE key WHEN 'rating' THEN try_cast(value AS DOUBLE) END AS stars,
             CASE key WHEN 'label' THEN string_split(value, ';') END AS words
      FROM annotations) GROUP BY asset_id
"""
BEST_ASSETS = f"""
SELECT a.*, rating, coalesce(rating_count, 0) AS rating_count, rating_spread,
       coalesce(labels, []) AS labels
FROM (SELECT * FROM assets
      QUALIFY row_number() OVER (PARTITION BY asset_id ORDER BY {BEST_FIRST}) = 1) a
LEFT JOIN ({RATINGS_SQL}) USING (asset_id)
WHERE status <> 'pruned'
"""
