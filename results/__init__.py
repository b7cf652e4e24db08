"""What comes out of a slide: CSV, GeoJSON, Parquet, mask, heatmaps and the summary that commits them.

Import the module that is needed (``results.write`` for all of it): this package imports nothing by itself, so that
processes which only want ``results.journal`` do not pay for pyarrow, OpenCV and Pillow.
"""
