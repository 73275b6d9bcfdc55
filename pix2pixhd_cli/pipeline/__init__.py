"""One verb, one module, one public function: the Python API."""
