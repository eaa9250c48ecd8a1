"""Is this function right? Properties for the reader's own convolution, batch norm or loss, and for ours.

Nothing here is imported by the library itself; `oracle` alone holds every formula once more, as loops.
"""
