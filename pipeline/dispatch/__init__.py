"""What the patch batcher decides, in pure code: leases and credits, slots, schedule, suspects, the lives of slides.

Start reading at dispatcher.py; its parts are intake.py (slides) and feed.py (batches), which share board.py.
"""
