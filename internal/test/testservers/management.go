package testservers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Manage sends a request with a JSON body to a management API, of which base is the URL as [Server.ManagementURL] has it. An
// answer that is not a success is an error with its text.
func Manage(ctx context.Context, base, method, path, body string) error {
	request, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusMultipleChoices {
		reason, _ := io.ReadAll(response.Body)
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(reason))
	}
	return nil
}
