"""The command line: one file per command around one public function."""
