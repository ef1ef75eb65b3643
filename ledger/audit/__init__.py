"""Answers for whoever asks later: is the log whole, and does it say what it said?"""
