"""The report's charts, one family a file: each function takes plain report data and returns a ``Chart``.

A chart is a Vega-Lite specification made with Altair, apart from its data; ``svg`` draws it, ``figures`` writes it
to files, the page also hands it to the reader's browser for tooltips.
"""
