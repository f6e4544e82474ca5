"""The one door for weights from outside."""
