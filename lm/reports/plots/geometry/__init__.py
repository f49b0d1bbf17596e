"""Layout of figures: free positions of labels, and inline SVG for pages.

The files, in reading order:

    label_placement.py    labels that cover no marker, line or other label
    tick_labels.py        few round labels in small panels
    inline_svg.py         figures as SVG elements of an HTML page, one per panel
"""
