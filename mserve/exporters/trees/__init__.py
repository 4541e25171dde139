"""Forests of decision trees: XGBoost, LightGBM, CatBoost."""
