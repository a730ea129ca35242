//go:build !linux && !darwin

package sqlite

import "errors"

// FreeSpace is not known.
func FreeSpace(string) (int64, error) { return 0, errors.ErrUnsupported }
