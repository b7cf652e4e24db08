"""One module a kind of process, in the order of the data: reader, tissue, batcher, inference, aggregator, writer.

Each is started by the supervisor as `python -m stages.<kind>`, speaks with the batcher alone, and keeps nothing that a
kill could lose.
"""
