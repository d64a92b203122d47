"""Prepare the process for the import of Jittor, and compile its operators faster afterwards."""
