"""What an asset looks like and how good it is: pictures, metrics, judges and the turntable."""
