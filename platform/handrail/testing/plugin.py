"""The pytest plugin for projects that use handrail. It holds fixtures only."""
