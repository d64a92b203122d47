"""What has to be true before Jittor is imported, and how Jittor compiles afterwards."""
