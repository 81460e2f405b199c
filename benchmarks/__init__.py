"""Timings of the hot paths, peers side by side in one run: `spiking bench`. One runner, one file a case."""
