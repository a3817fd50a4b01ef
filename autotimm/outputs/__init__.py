"""What a run writes for people and scripts: metrics, pictures, results, where they came from."""
