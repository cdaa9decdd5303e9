"""Convert scikit-learn models to .tflite without TensorFlow, quantize .tflite files, and check both."""
