%% `nats_gateway ctl': asks the gateway that runs on this machine, through its control socket.
-module(nats_gateway_ctl).

-export([main/1]).

-include("nats_gateway_exit.hrl").

-define(USAGE, <<
    "usage: nats_gateway ctl [-c FILE | --socket PATH] COMMAND\n"
    "  status [--json]                      what the gateway is and has\n"
    "  clients [--json] [--user USER]       who is connected\n"
    "  kick CID [--json]                    close a client\n"
    "  kick --user USER [--json]            close all clients of a user\n"
    "  reload [--json]                      read the settings again, as SIGHUP does, and say what has changed\n"
    "  drain [--json]                       begin the lame duck mode, as SIGUSR2 does\n"
    "  -c FILE        the settings of the gateway, whose control.socket is used\n"
    "  --socket PATH  that socket; without both, /run/nats-gateway/control.sock\n"
    "Only the user of the gateway and root get answers.\n"
>>).

%% As the settings of the Debian package have it.
-define(SOCKET, <<"/run/nats-gateway/control.sock">>).

%% Throws `{stop, ExitStatus, Text}' for what is not done.
-spec main([string()]) -> no_return().
main(Arguments) ->
    {Path, Words} = arguments(Arguments, default),
    case nats_gateway_ctl_commands:parse(Words) of
        {ok, _} -> print(nats_gateway_ctl_socket:request(Path, Words), Path);
        {error, Text} -> throw({stop, ?EX_USAGE, ["ctl: ", Text]})
    end.

arguments([Help | _], _) when Help =:= "-h"; Help =:= "--help" ->
    ok = file:write(standard_io, ?USAGE),
    erlang:halt(0);
arguments(["-c", File | Rest], _) ->
    arguments(Rest, {file, File});
arguments(["--socket", Path | Rest], _) ->
    arguments(Rest, {socket, nats_gateway_settings:argument(Path)});
arguments([Option], _) when Option =:= "-c"; Option =:= "--socket" ->
    throw({stop, ?EX_USAGE, ["ctl: ", Option, " needs a value"]});
arguments(Words, Where) ->
    case [Word || Word <- Words, lists:member(Word, ["-h", "--help", "-c", "--socket"])] of
        [] ->
            {socket(Where), [nats_gateway_settings:argument(Word) || Word <- Words]};
        [Option | _] when Option =:= "-c"; Option =:= "--socket" ->
            throw({stop, ?EX_USAGE, ["ctl: ", Option, " comes before the command"]});
        [Help | _] ->
            arguments([Help], Where)
    end.

socket(default) ->
    ?SOCKET;
socket({socket, Path}) ->
    Path;
socket({file, File}) ->
    %% A setting elsewhere may be wrong: that is no reason not to reach the gateway.
    case nats_gateway_settings:tables(#{file => File}) of
        #{<<"control">> := #{<<"socket">> := Path}} when is_binary(Path) ->
            Path;
        #{} ->
            throw({stop, ?EX_CONFIG, [File, ": control.socket is not set: the gateway has no control socket"]})
    end.

-spec print({ok, byte(), binary()} | {error, term()}, Path :: binary()) -> no_return().
print({ok, 0, Text}, _) ->
    write(standard_io, Text, 0);
print({ok, Status, Text}, _) ->
    %% JSON goes where JSON is expected.
    case Text of
        <<"{", _/binary>> -> write(standard_io, Text, Status);
        _ -> write(standard_error, Text, Status)
    end;
print({error, Reason}, Path) ->
    throw({stop, ?EX_UNAVAILABLE, ["ctl: no gateway answers at ", Path, " (", explain(Reason), ")"]}).

write(Device, Text, Status) ->
    _ = io:setopts(Device, [{encoding, unicode}]),
    ok = io:put_chars(Device, Text),
    erlang:halt(Status).

explain(enoent) -> "there is no such socket: does the gateway run, with this control.socket?";
explain(econnrefused) -> "the socket was left behind by a gateway that was killed";
explain(closed) -> "it answers only its own user and root";
explain(Reason) when Reason =:= eacces; Reason =:= eperm -> "permission denied: it answers only its own user and root";
explain(Reason) -> nats_gateway_ctl_socket:explain(Reason).
