"""Reward models and policies: trained, resumed, launched."""
