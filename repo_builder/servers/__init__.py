"""Servers of a model repository: a local tritonserver, and what every server looks like to its user."""
