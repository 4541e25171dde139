"""scikit-learn: estimators from skops files, pickles, and live."""
