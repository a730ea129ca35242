package amqp

import (
	"fmt"
	"regexp"
	"strconv"
	"sync/atomic"

	amqp091 "github.com/rabbitmq/amqp091-go"
)

// limits are those of the broker for one message, as far as they are known. They belong to a connection: the broker may be
// configured anew before the next one.
type limits struct {
	frame int          // bytes of a frame, as negotiated; 0: unknown
	body  atomic.Int64 // max_message_size, known only from the broker's refusal of a message; 0: unknown
}

// tooLarge is the text of RabbitMQ's refusal: "message size 18 is larger than configured max size 16"; before 3.9 without "is".
var tooLarge = regexp.MustCompile(`message size \d+ (?:is )?larger than (?:configured )?max size (\d+)`)

// learn reads the limit in a refusal, if there is one.
func (l *limits) learn(refusal string) {
	if found := tooLarge.FindStringSubmatch(refusal); found != nil {
		if most, err := strconv.ParseInt(found[1], 10, 64); err == nil {
			l.body.Store(most)
		}
	}
}

func (l *limits) check(p amqp091.Publishing) error {
	if most := l.body.Load(); most > 0 && int64(len(p.Body)) > most {
		return fmt.Errorf("%w: body of %d bytes, over the broker's max_message_size of %d", ErrTooLarge, len(p.Body), most)
	}
	if l.frame == 0 || l.frame >= defaultFrame { // see checkSize: each message fits
		return nil
	}
	if n := headerBytes(p); n > l.frame {
		return fmt.Errorf("%w: headers of %d bytes, over the broker's frame_max of %d", ErrTooLarge, n, l.frame)
	}
	return nil
}

// headerBytes is at least the length of a message's content header, which cannot be split over frames.
func headerBytes(p amqp091.Publishing) int {
	const fixed = 64 // of the frame, the header and the properties of a fixed length
	n := fixed + sizeOf(p.Headers)
	for _, property := range []string{
		p.ContentType, p.ContentEncoding, p.CorrelationId, p.ReplyTo, p.Expiration, p.MessageId, p.Type, p.UserId, p.AppId,
	} {
		n += 1 + len(property)
	}
	return n
}
