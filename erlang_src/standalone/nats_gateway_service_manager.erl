%% What systemd is told of the standalone gateway: when it serves clients, and how long its end may
%% take. This is sd_notify(3), a datagram to the socket that NOTIFY_SOCKET names.
-module(nats_gateway_service_manager).

-export([ready/0]).
-export([stopping/1]).

%% What comes after the lame duck mode.
-define(MARGIN_MS, 10000).

-spec ready() -> ok.
ready() -> notify("READY=1\n").

%% The time of the lame duck mode is a setting of the gateway: TimeoutStopSec= does not cut it short.
-spec stopping(Milliseconds :: non_neg_integer()) -> ok.
stopping(Milliseconds) ->
    Microseconds = integer_to_list((Milliseconds + ?MARGIN_MS) * 1000),
    notify(["STOPPING=1\nEXTEND_TIMEOUT_USEC=", Microseconds, "\n"]).

%% Nobody is let down where it fails: systemd ends what does not say that it is ready.
notify(State) ->
    case os:getenv("NOTIFY_SOCKET") of
        [First | Rest] -> send(address(First, Rest), State);
        _ -> ok
    end.

%% An abstract socket's name begins with a zero.
address($@, Rest) -> [0 | Rest];
address(First, Rest) -> [First | Rest].

send(Address, State) ->
    case gen_udp:open(0, [local]) of
        {ok, Socket} ->
            _ = gen_udp:send(Socket, {local, Address}, 0, State),
            gen_udp:close(Socket);
        {error, _} ->
            ok
    end.
