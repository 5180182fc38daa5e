%% What others are told about a connection: the census and the monitoring endpoints while it lasts,
%% and the log at its end. All of it is read from the socket and the channel at that moment, so that
%% nothing of it takes memory.
-module(nats_gateway_report).

-export([octets/1]).
-export([figures/3]).
-export([description/2]).
-export([to_census/4]).
-export([log_end/2]).

-include_lib("kernel/include/logger.hrl").

-export_type([end_facts/0]).

-type socket() :: undefined | nats_gateway_transport:socket().

%% `channel' and `socket' may be undefined, because a connection may end before it has them. `detail'
%% says more about a handshake that has failed.
-type end_facts() :: #{
    socket := socket(),
    channel := undefined | nats_gateway_channel:channel(),
    listener := atom() | binary(),
    peername := undefined | {inet:ip_address(), inet:port_number()},
    detail := none | term(),
    %% whether the settings ask for statistics
    stats := boolean()
}.

%% The counters of the socket. There are none in the middle of a handshake, and after the end.
-spec octets(socket()) -> #{atom() => non_neg_integer()}.
octets(undefined) ->
    #{};
octets(Socket) ->
    case nats_gateway_transport:getstat(Socket) of
        {ok, Stat} -> Stat;
        {error, _} -> #{}
    end.

-spec figures(Octets :: #{atom() => non_neg_integer()}, socket(), nats_gateway_channel:channel()) ->
    nats_gateway_census:figures().
figures(Octets, Socket, Channel) ->
    Stats = (nats_gateway_channel:stats(Channel))#{pending => pending(Socket, Channel)},
    Known = maps:merge(Stats, sizes(Octets)),
    case nats_gateway_channel:rtt(Channel) of
        unknown -> Known;
        Rtt -> Known#{rtt => Rtt}
    end.

sizes(Octets) -> maps:with([octets_received, octets_sent], Octets).

pending(undefined, _) ->
    0;
pending(Socket, Channel) ->
    Unsent = nats_gateway_channel:unsent(Channel),
    case nats_gateway_transport:pending(Socket) of
        {ok, Pending, _} -> Pending + Unsent;
        {error, _} -> Unsent
    end.

-spec description(socket(), nats_gateway_channel:channel()) -> nats_gateway_channel:description().
description(Socket, Channel) ->
    Description = nats_gateway_channel:description(Channel),
    case Socket =/= undefined andalso nats_gateway_transport:tls(Socket) of
        {ok, Tls} -> Description#{tls => Tls};
        _ -> Description
    end.

%% Returns whether there is a census. It may have started after this client came, so the client
%% enters it here as well.
-spec to_census(Octets, Listener, socket(), nats_gateway_channel:channel()) -> boolean() when
    Octets :: #{atom() => non_neg_integer()}, Listener :: atom() | binary().
to_census(Octets, Listener, Socket, Channel) ->
    case nats_gateway_census:is_on() of
        true ->
            Figures = figures(Octets, Socket, Channel),
            ClientId = nats_gateway_channel:client_id(Channel),
            ok = nats_gateway_census:enter(ClientId, Listener, Figures),
            ok = nats_gateway_census:report(nats_gateway_channel:account(Channel), Figures),
            true;
        false ->
            false
    end.

%% All ends of connections are logged here. Refused clients are logged at a limited rate, because
%% there may be any number of them. Anything but a shutdown is a crash, which has its own report.
-spec log_end(term(), end_facts()) -> ok.
log_end({shutdown, Reason}, Facts = #{channel := Channel, listener := Listener}) ->
    Level = nats_gateway_ending:log_level(Reason),
    IsConnected = Channel =/= undefined andalso nats_gateway_channel:is_connected(Channel),
    IsLogged =
        logger:allow(Level, ?MODULE) andalso
            (IsConnected orelse Level =:= info orelse nats_gateway_refusals:may_log(Listener)),
    _ = IsLogged andalso ?LOG(Level, end_report(Reason, Facts)),
    ok;
log_end(_, _) ->
    ok.

end_report(Reason, Facts = #{listener := Listener, peername := Peername, detail := Detail}) ->
    Report = #{
        msg => connection_closed,
        peername => peername(Peername),
        listener => Listener,
        reason => Reason
    },
    Known = maps:merge(Report, end_stats(Facts)),
    case Detail of
        none -> Known;
        _ -> Known#{detail => Detail}
    end.

peername(undefined) -> undefined;
peername(Peername) -> nats_gateway_system:peername(Peername).

end_stats(#{stats := true, socket := Socket, channel := Channel}) when Channel =/= undefined ->
    maps:merge(sizes(octets(Socket)), nats_gateway_channel:stats(Channel));
end_stats(#{}) ->
    #{}.
