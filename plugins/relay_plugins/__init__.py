"""The plugins and moderators that come with the relay. They register by entry points, as a stranger's would."""
