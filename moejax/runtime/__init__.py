"""What programs run on and with: platforms, compiled programs, their sizes, several processes."""
