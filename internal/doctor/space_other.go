//go:build !linux && !darwin

package doctor

import "errors"

// freeSpace is not known.
func freeSpace(string) (int64, error) { return 0, errors.ErrUnsupported }
