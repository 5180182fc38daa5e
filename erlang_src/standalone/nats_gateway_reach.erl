%% Whether there is a broker at all, before anything else is started: and if not, which setting is
%% wrong.
-module(nats_gateway_reach).

-export([check/1]).
-export([open/1]).
-export([url/1]).

-include("nats_gateway_exit.hrl").

%% Throws `{stop, ExitStatus, Text}', where the text names the setting.
-spec check(nats_gateway_upstream:upstream()) -> ok.
check(Upstream) -> nats_gateway_transport:close(open(Upstream)).

%% A connection to it, for the calling process.
-spec open(nats_gateway_upstream:upstream()) -> nats_gateway_transport:socket().
open(#{host := Host, port := Port, tls := Tls, connect_timeout := Timeout}) ->
    Tls =:= none orelse readable(Tls),
    case nats_gateway_transport:connect({Host, Port}, Tls, Timeout) of
        {ok, Socket} ->
            Socket;
        {error, {options, Option}} ->
            wrong_option(option(Option));
        {error, Reason} ->
            throw(
                {stop, ?EX_UNAVAILABLE, [
                    "no MQTT broker at ",
                    nats_gateway_address:format({Host, Port}),
                    " (",
                    nats_gateway_upstream:explain(Reason),
                    "): start one there, or name another with --upstream or upstream.url"
                ]}
            )
    end.

readable(Tls) ->
    {ok, _} = application:ensure_all_started(ssl),
    lists:foreach(
        fun({Name, File}) ->
            case file:read_file(File) of
                {ok, _} ->
                    ok;
                {error, Reason} ->
                    wrong_option([atom_to_list(Name), ": ", File, ": ", file:format_error(Reason)])
            end
        end,
        [Option || {Name, _} = Option <- Tls, lists:member(Name, [cacertfile, certfile, keyfile])]
    ).

-spec wrong_option(iodata()) -> no_return().
wrong_option(Text) -> throw({stop, ?EX_CONFIG, ["upstream.ssl_options.", Text]}).

%% The value of the option may be a password.
option(Option) when is_tuple(Option), is_atom(element(1, Option)) ->
    [atom_to_list(element(1, Option)), ": cannot be used"];
option(_) ->
    "cannot be used".

-spec url(nats_gateway_upstream:upstream()) -> binary().
url(#{host := Host, port := Port, tls := Tls}) ->
    Scheme =
        case Tls of
            none -> "mqtt://";
            _ -> "mqtts://"
        end,
    iolist_to_binary([Scheme, nats_gateway_address:format({Host, Port})]).
