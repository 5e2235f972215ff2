"""What watches a training: records, trackers, pictures, tables and the progress display.

Import each from its own module; none of them slows a training step or waits for the GPU within one.
"""
