"""Linear models and factorisation machines: LIBLINEAR, LIBSVM, libFM."""
