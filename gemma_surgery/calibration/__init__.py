"""What calibration measured: profiles of activations, as files."""
