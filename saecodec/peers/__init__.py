"""Peers: other codecs of rows, really run and decoded beside ours. Each is one module; `registry` lists them."""
