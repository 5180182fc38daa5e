%% What systemd is told of the standalone gateway: when it serves clients, and how long its end may
%% take. This is sd_notify(3), a datagram to the socket that NOTIFY_SOCKET names. And whether the
%% log goes to systemd's journal, where the beginning of a line may say how grave it is.
-module(nats_gateway_service_manager).

-export([ready/0]).
-export([stopping/1]).
-export([is_journal/0]).
-export([priority/1]).

-include_lib("kernel/include/file.hrl").

%% What comes after the lame duck mode.
-define(MARGIN_MS, 10000).

-spec ready() -> ok.
ready() -> notify("READY=1\n").

%% The time of the lame duck mode is a setting of the gateway: TimeoutStopSec= does not cut it short.
-spec stopping(Milliseconds :: non_neg_integer()) -> ok.
stopping(Milliseconds) ->
    Microseconds = integer_to_list((Milliseconds + ?MARGIN_MS) * 1000),
    notify(["STOPPING=1\nEXTEND_TIMEOUT_USEC=", Microseconds, "\n"]).

%% Whether standard error is the journal's: whoever is started by a service, but has been given
%% another standard error, inherits the variable, too.
-spec is_journal() -> boolean().
is_journal() ->
    case {os:getenv("JOURNAL_STREAM"), file:read_file_info("/proc/self/fd/2", [raw])} of
        {Stream, {ok, #file_info{major_device = Device, inode = Inode}}} when is_list(Stream) ->
            Stream =:= lists:concat([Device, ":", Inode]);
        _ ->
            false
    end.

%% As syslog counts.
-spec priority(logger:level()) -> string().
priority(emergency) -> "<0>";
priority(alert) -> "<1>";
priority(critical) -> "<2>";
priority(error) -> "<3>";
priority(warning) -> "<4>";
priority(notice) -> "<5>";
priority(info) -> "<6>";
priority(debug) -> "<7>".

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
