"""`har app`: a local web page that predicts the videos dropped on it. `serving.serve` is the way in."""
