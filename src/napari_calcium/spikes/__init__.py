"""Spike inference: from dF/F to a rate of spikes, by networks trained on recorded spikes."""
