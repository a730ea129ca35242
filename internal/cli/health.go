package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/healz/worker/internal/doctor"
)

func healthCommand() *cobra.Command {
	var httpAddr string
	c := &cobra.Command{
		Use:   "health",
		Short: "Say whether a worker is alive, as the health check of a container",
		Long: `health reads /healthz of the worker at --http-addr. It exits with 0 if the worker is alive, and with 1 if it is not or does
not answer within 2 seconds. A worker is alive while its store or its broker is not available: /readyz and doctor tell of them.`,
		Args: noArguments,
		// In place of the root's: no other setting, as a file of a secret, decides whether the worker is alive.
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return fromEnvironment(c, c.LocalNonPersistentFlags())
		},
		RunE: func(c *cobra.Command, _ []string) error {
			if err := doctor.Alive(c.Context(), httpAddr); err != nil {
				return fmt.Errorf("no worker is alive at --http-addr %s: %w", httpAddr, err)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "the worker at %s is alive\n", httpAddr)
			return err
		},
	}
	c.Flags().StringVar(&httpAddr, "http-addr", defaultHTTPAddr, "the setting of the worker; if it is all addresses, that of this machine")
	return c
}
