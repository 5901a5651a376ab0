"""What tests/bench.py measures with. Only Python's own library is used."""
